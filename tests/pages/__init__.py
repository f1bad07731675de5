"""Parts for the tests of the web pages, and what fetches the scripts that the pages ship."""
