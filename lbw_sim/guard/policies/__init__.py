"""One policy per file; the registry scans this folder."""
