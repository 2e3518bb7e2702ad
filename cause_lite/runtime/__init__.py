"""What every long job needs: a device, several processes, a journal to resume from, progress, whole files.

Begin with `files` (errors and atomic writes) and `journal` (resuming to the bit). Nothing here knows the method.
"""
