"""A report on runs as one HTML page that needs nothing else: `facts.collect`, then `page.write`.

``page.html`` and ``page.css`` are its frame, the ``.js`` files are what it does in the browser, in
plain JavaScript; `page` puts all of them and the facts into one file.
"""
