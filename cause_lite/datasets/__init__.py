"""Images and label maps by name: rendered scenes, CamVid, the benchmarks' official files, or a folder of your own.

Begin with `loading.load_split`, which every command calls; `images` turns files into arrays, one row at a time.
`official`, `camvid` and `scenes` each know one source, and `downloads` fetches what is public. `photos` packs
unlabelled photographs for pre-training.
"""

from cause_lite.datasets.loading import Split, class_shares, folder_files, is_folder, load_split, prepare, without_bad

__all__ = ["Split", "class_shares", "folder_files", "is_folder", "load_split", "prepare", "without_bad"]
