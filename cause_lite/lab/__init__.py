"""Experiments: recipes, runs, baselines, studies, the audit of labels, published rows, cost and speed.

Begin with `recipes.recipe` (the settings of an experiment) and `runs` (fit it, score it). `reproduce` runs a
published row, `studies` changes one thing at a time, `audit` asks what labels reach.
"""
