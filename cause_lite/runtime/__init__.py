"""Serve every long job: devices, processes, a journal to resume from, progress, whole files, checked settings.

Begin with `files` (errors and atomic writes) and `journal` (resuming to the bit). Nothing here knows the method.
"""
