# Inside the tools root: turns the base tar and our files into the root file system's tree.
# Environment: BASE (tar), FILES (our files, laid over), TREE (made here), EDITENV (grub-editenv),
# STATUS (out: dpkg's status, for the parts list), KERNEL (out: the kernel).

mkdir "$TREE"
tar -xf "$BASE" -C "$TREE" --numeric-owner
cd "$TREE"

cp var/lib/dpkg/status "$STATUS"
cp boot/vmlinuz-* "$KERNEL"

# Package management, initramfs generators, interpreters and texts that an image which is replaced
# as a whole never uses. Licence texts stay (common-licenses).
rm -rf boot/* vmlinuz* initrd.img* \
    usr/bin/apt* usr/lib/apt usr/lib/*/libapt-* etc/apt usr/share/apt usr/bin/sqv \
    usr/share/initramfs-tools usr/lib/initramfs-tools usr/lib/klibc* usr/lib/dracut etc/initramfs-tools \
    usr/sbin/*initramfs* usr/bin/*initramfs* usr/lib/kernel etc/kernel \
    usr/bin/perl* usr/lib/*/perl-base usr/share/perl* usr/share/debconf usr/sbin/dpkg-* \
    usr/bin/dpkg* usr/lib/dpkg usr/share/dpkg etc/dpkg etc/alternatives/README etc/cron.daily \
    usr/share/doc usr/share/man usr/share/info usr/share/locale usr/share/lintian usr/share/bug \
    usr/share/bash-completion usr/share/zsh usr/share/doc-base usr/share/menu usr/share/pixmaps \
    usr/lib/*/gconv usr/lib/udev/hwdb.d usr/share/keyrings usr/share/python3 usr/share/gdb \
    etc/rc?.d etc/init.d etc/default/grub* etc/skel usr/lib/systemd/system/apt-* \
    usr/lib/systemd/system/dpkg-* usr/lib/systemd/system/e2scrub* usr/lib/systemd/system/rc-local* \
    usr/lib/systemd/system/nftables.service usr/lib/systemd/system/cryptdisks* \
    usr/lib/systemd/system-generators/systemd-sysv-generator etc/systemd/system/*.wants
# Debian keeps watchdog drivers from being loaded by themselves; here a watchdog is wanted.
rm -f usr/lib/modprobe.d/blacklist_linux* etc/modprobe.d/blacklist_linux*

# Hardware that a headless node has no use for, or that runs only with firmware we do not ship.
for modules in usr/lib/modules/*/; do
    (
        cd "$modules/kernel"
        rm -rf sound drivers/media drivers/infiniband drivers/isdn drivers/net/wireless \
            drivers/bluetooth net/bluetooth net/wireless net/mac80211 drivers/gpu/drm/amd drivers/gpu/drm/nouveau \
            drivers/gpu/drm/radeon drivers/gpu/drm/xe drivers/firewire drivers/gpu/drm/vmwgfx \
            drivers/input/joystick drivers/staging drivers/comedi fs/ocfs2 fs/gfs2 fs/ceph fs/orangefs \
            fs/jfs fs/hfs fs/hfsplus fs/reiserfs fs/afs fs/coda fs/dlm
    )
    rm -f "$modules"/modules.*.bin
    depmod -b "$TREE" "$(basename "$modules")"
done

install -m 0755 "$EDITENV" usr/bin/grub-editenv
cp -a --no-preserve=ownership "$FILES/." .
mkdir -p data efi etc/rauc
chmod 0755 data efi

systemd-sysusers --root="$TREE"
systemctl --root="$TREE" preset-all --preset-mode=full 2>&1 | grep -v '^Created symlink\|^Removed' || :
# Locked: nobody logs in here. Everything that is done to a node goes through its API or an update.
sed -i 's/^root:[^:]*:/root:!*:/' etc/shadow
rm -f etc/passwd- etc/group- etc/shadow- etc/gshadow- etc/subuid* etc/subgid* etc/.pwd.lock
: >etc/fstab
: >etc/machine-id
chmod 0444 etc/machine-id
ln -sfn ../proc/self/mounts etc/mtab

# /var lives on the data partition: what the packages want to find there is made at each boot.
rm -rf var/lib/dpkg var/lib/apt var/cache var/backups var/lib/pam var/lib/python var/lib/misc \
    var/lib/shells.state var/lib/ucf var/lib/initramfs-tools var/log/apt var/log/*.log
{
    echo '# The directories of /var as the packages made them. Generated; see docs/image.md.'
    find var -mindepth 1 -type d -printf 'd /%p %m %U %G -\n' -o -type l -printf 'L /%p - - - - %l\n' |
        sort -k2
    echo 'd /var/cache 0755 root root -'
    echo 'd /var/lib/misc 0755 root root -'
} >usr/lib/tmpfiles.d/00-skerry-var.conf
find var -mindepth 1 -delete
rm -rf run/* tmp/* dev/*

# The root is read-only and its times are all the same: a .pyc is never checked against its source.
find usr/lib/python3* usr/lib/skerry -name __pycache__ -type d -prune -exec rm -rf {} +
rm -rf usr/lib/python3.*/test usr/lib/python3.*/idlelib usr/lib/python3.*/tkinter \
    usr/lib/python3.*/turtledemo usr/lib/python3.*/pydoc_data usr/lib/python3.*/ensurepip
PYTHONHASHSEED=0 python3 -m compileall -q -f --invalidation-mode unchecked-hash \
    -s "$TREE" -p / usr/lib/python3.* usr/lib/skerry
find . -xdev -name '*.pyc' ! -perm 644 -exec chmod 644 {} +
