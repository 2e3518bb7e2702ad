"""Images and label maps by name: rendered scenes, published data sets, or a folder of your own.

Begin with `loading.load_split`, which every command calls. `picture_files` (and `tiff`) turn a file into a raster and
`arrays` a raster into a picture; `images` turns many files into rows. `registry` lists the published data sets,
`downloads` and `archives` fetch them; `scenes` renders views; `folder_survey`, `label_table` and `folders` read folders
of one's own. `photos` packs unlabelled photographs for pre-training.
"""

from cause_lite.datasets.folders import folder_files
from cause_lite.datasets.loading import class_shares, is_folder, load_split, prepare
from cause_lite.datasets.split import Split, without_bad

__all__ = ["Split", "class_shares", "folder_files", "is_folder", "load_split", "prepare", "without_bad"]
