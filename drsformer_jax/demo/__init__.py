"""A page in the browser to try networks: the command, the page, and its visitors' files."""
