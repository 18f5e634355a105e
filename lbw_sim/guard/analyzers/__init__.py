"""One analyzer per file; the registry scans this folder."""
