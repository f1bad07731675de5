"""A virtual machine of the tests: a Debian 12 with a kernel, and so control groups, of its own."""
