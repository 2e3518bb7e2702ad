"""Images and label maps by name: rendered scenes, CamVid, the benchmarks' official files, or a folder of your own.

Begin with `loading.load_split`, which every command calls; `readers` turns a file into an image, `images` many files
into rows; `geotiff` keeps georeferences. `official`, `camvid`, `scenes` and `folders` each know one source; `sources`
lists what can be downloaded, `downloads` fetches it and `archives` unpacks it. `photos` packs unlabelled photographs
for pre-training.
"""

from cause_lite.datasets.folders import folder_files
from cause_lite.datasets.loading import class_shares, is_folder, load_split, prepare
from cause_lite.datasets.split import Split, without_bad

__all__ = ["Split", "class_shares", "folder_files", "is_folder", "load_split", "prepare", "without_bad"]
