"""Images: results, PNG files, and the metadata in them."""
