"""The local AWS: the server around an emulator, and its corrections."""
