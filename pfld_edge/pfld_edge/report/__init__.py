"""Reports on verifications: an HTML page, charts and pictures of faces."""
