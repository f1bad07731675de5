"""The development cloud: a real single-node OpenStack on one computer, for tests.  See docs/development-cloud.md."""
