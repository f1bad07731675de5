# Starts libvirtd in a mount namespace of its own (see services.py): directories of its own, so that a libvirt of this
# computer is not touched, and no v2 tree in a hybrid cgroup tree, which libvirt-lxc 9.0 cannot handle.
set -e
mount --bind "@DIR@/libvirt/run" /run/libvirt
mount --bind "@DIR@/libvirt/lib" /var/lib/libvirt
mount --bind "@DIR@/libvirt/etc" /etc/libvirt
mount --bind "@DIR@/libvirt/log" /var/log/libvirt
if mountpoint -q /sys/fs/cgroup/unified; then
    umount /sys/fs/cgroup/unified
fi
exec libvirtd --pid-file "@DIR@/libvirt/run/libvirtd.pid"
