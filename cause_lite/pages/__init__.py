"""What makes the book: figures, tables, sliders, records of its numbers, the site and its PDF.

Begin with `site.build`, which `make book` runs. `headlines` glues a number into a page and `verify` compares it;
`plots` and `tables` show what several pages need.
"""
