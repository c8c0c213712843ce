"""One file per command. Functions raise a UserError for input that the user can fix."""
