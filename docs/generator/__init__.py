"""The manual: what it is built from beside the pages that people write."""
