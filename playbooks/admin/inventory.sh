#!/bin/sh
# The inventory of this user's ready platforms, for `ansible-playbook -i admin/inventory.sh`
exec provision admin inventory "$@"
