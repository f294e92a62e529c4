"""How the commands of this folder write files."""
