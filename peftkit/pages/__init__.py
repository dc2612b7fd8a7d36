"""What a comparison is shown as: a page, tables, pictures."""
