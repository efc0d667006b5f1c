"""The field's methods, one file each."""
