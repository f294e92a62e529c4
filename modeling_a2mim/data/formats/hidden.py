"""Which files and folders hold nothing of the user's, by their names: in folders and in archives alike."""

# Where file servers and operating systems keep thumbnails and what was deleted. Hidden folders are left out as well.
SYSTEM_FOLDERS = {
    *("@eadir", "@recycle", "@recently-snapshot", "#recycle", "#snapshot", "$recycle.bin"),
    *("lost+found", "system volume information"),
}
IN_SYSTEM_FOLDERS = "files in hidden and system folders are left out"
HIDDEN_FILES = "hidden files are left out"


def is_system(name: str) -> bool:
    """Whether a folder is hidden, or none of the user's."""
    return name.startswith((".", "__")) or name.lower() in SYSTEM_FOLDERS


def reason_to_leave_out(member: str) -> str | None:
    """Why a file in an archive is left out by its path in it; `None` if it is not."""
    *folders, base = member.split("/")
    if any(is_system(folder) for folder in folders if folder not in (".", "..")):
        return IN_SYSTEM_FOLDERS
    return HIDDEN_FILES if base.startswith(".") else None
