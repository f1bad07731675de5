"""A Keystone that trusts the tests' OpenID provider, as sites of INFN-Cloud trust INDIGO IAM, and an oidc-agent."""
