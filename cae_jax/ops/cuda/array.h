// What the kernels take.

#pragma once

// Rows of values for each of several models, or the same for all of them.
struct Array {
  void* data;
  long long rows, model;  // how many rows, and values from one model to the next
  int is_bytes;           // uint8, 0 to 255 for 0 to 1, in place of float
};
