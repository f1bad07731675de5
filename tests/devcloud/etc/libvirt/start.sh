# Starts libvirtd in a mount namespace of its own (see services.py): directories of its own, so that a libvirt of this
# computer is not touched, and no v2 tree in a hybrid cgroup tree, which libvirt-lxc 9.0 cannot handle.
set -e
mount --bind "@DIR@/libvirt/run" /run/libvirt
mount --bind "@DIR@/libvirt/lib" /var/lib/libvirt
mount --bind "@DIR@/libvirt/etc" /etc/libvirt
mount --bind "@DIR@/libvirt/log" /var/log/libvirt
# libvirt-lxc shows a server all control groups that it sees itself, and the server's systemd removes those that are
# empty, whoever has made them: in version 1 it sees those below the cloud's own.
begin=
for tree in /sys/fs/cgroup/*; do
    if [ -e "$tree/cgroup.procs" ] && [ ! -L "$tree" ] && mountpoint -q "$tree"; then
        mkdir -p "$tree/@GROUP@"
        for setting in cpuset.cpus cpuset.mems; do  # a new group has none, and takes no process
            [ ! -e "$tree/$setting" ] || cat "$tree/$setting" >"$tree/@GROUP@/$setting"
        done
        echo $$ >"$tree/@GROUP@/cgroup.procs"
        case $tree in
        */unified) umount "$tree" ;;
        *) mount --bind "$tree/@GROUP@" "$tree" ;;
        esac
        begin="unshare --cgroup"
    fi
done
exec $begin libvirtd --pid-file "@DIR@/libvirt/run/libvirtd.pid"
