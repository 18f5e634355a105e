"""One sensor per file; the registry scans this folder."""
