#!/bin/sh
# Makes a signed package archive in the folder $1, with stand-ins for CVMFS' client and its configuration, and beside it
# `key`, which holds the archive's key and another one, and `fingerprint`.
set -eu
folder=$1
export GNUPGHOME="$folder/home"
mkdir -p "$GNUPGHOME" "$folder/repositories/cms.cern.ch" "$folder/repositories/sft-nightlies.cern.ch"
chmod 700 "$GNUPGHOME"
echo software >"$folder/repositories/cms.cern.ch/content"
echo software >"$folder/repositories/sft-nightlies.cern.ch/content"
gpg --batch --quiet --passphrase '' --quick-gen-key archive@example.org rsa2048
gpg --batch --quiet --passphrase '' --quick-gen-key other@example.org rsa2048
gpg --batch --export >"$folder/key"
gpg --batch --with-colons --list-keys archive@example.org | awk -F: '/^fpr/ {print $10; exit}' >"$folder/fingerprint"

package() { # name, depends
    root="$folder/build/$1"
    mkdir -p "$root/DEBIAN"
    printf 'Package: %s\nVersion: 2.11\nArchitecture: all\nMaintainer: Tests <archive@example.org>\nDescription: stand-in\n' "$1" \
        >"$root/DEBIAN/control"
    dpkg-deb --build --root-owner-group "$root" "$folder/archive/$1.deb" >/dev/null
}
mkdir -p "$folder/archive" "$folder/build/cvmfs/sbin" "$folder/build/cvmfs/usr/bin" "$folder/build/cvmfs-config-default/etc/cvmfs"
cat >"$folder/build/cvmfs/sbin/mount.cvmfs" <<END
#!/bin/sh
exec mount --bind "$folder/repositories/\$1" "\$2"
END
cat >"$folder/build/cvmfs/usr/bin/cvmfs_config" <<'END'
#!/bin/sh
[ "$1" = reload ] && exec touch /run/cvmfs-reloaded
shift
bad=0
for name; do
    if [ -e "/cvmfs/$name/content" ]; then echo "Probing /cvmfs/$name... OK"; else echo "Probing /cvmfs/$name... Failed!"; bad=1; fi
done
exit $bad
END
chmod 755 "$folder/build/cvmfs/sbin/mount.cvmfs" "$folder/build/cvmfs/usr/bin/cvmfs_config"
package cvmfs
package cvmfs-config-default
cd "$folder/archive"
mkdir -p dists/tests/main/binary-amd64 dists/tests/main/binary-arm64
apt-ftparchive packages . >dists/tests/main/binary-amd64/Packages
cp dists/tests/main/binary-amd64/Packages dists/tests/main/binary-arm64/Packages
apt-ftparchive -o APT::FTPArchive::Release::Suite=tests -o APT::FTPArchive::Release::Components=main \
    -o 'APT::FTPArchive::Release::Architectures=amd64 arm64' release dists/tests >Release
mv Release dists/tests/Release
gpg --batch --quiet --local-user archive@example.org --clearsign --output dists/tests/InRelease dists/tests/Release
chmod -R a+rX "$folder/archive"
