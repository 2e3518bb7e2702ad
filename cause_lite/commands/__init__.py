"""The commands of `cause-lite`, a file a subject; `app` puts them together.

Begin with `model` (fit, evaluate, segment, export, push). `data` gets images ready, `experiment` runs what the book
reports. A command imports what it needs when it runs, so that `--help` answers at once.
"""
