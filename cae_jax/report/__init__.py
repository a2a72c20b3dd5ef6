"""Writes a report on runs as one self-contained HTML page: `collect.collect`, then `page.write`.

``web/`` holds the page's frame, style and scripts in plain JavaScript; `page` puts them and the
report data into one file.
"""
