"""Storage: whole files and folders, the user's cache, mapped tensor files, their hashes."""
