"""The inventory: as Ansible reads it, what is wrong with it, and the one file in it that is the queen's."""
