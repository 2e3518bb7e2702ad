"""The commands of `cause-lite`, which `cause_lite.cli` puts together.

Begin with `model` (data, pretrain, fit, evaluate, segment, export, push). `experiment` runs what the book reports. A
command imports what it needs when it runs, so that `--help` answers at once.
"""
