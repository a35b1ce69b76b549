"""Files and messages: atomic writes, safe reading, listing, process pools, user errors and redaction."""
