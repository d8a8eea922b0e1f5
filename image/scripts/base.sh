# Inside the tools root: makes the tar file of a Debian root from a folder of checked .deb files.
# Environment: REPOSITORY OUTPUT ARCHITECTURE INCLUDE SOURCE_DATE_EPOCH

cd "$REPOSITORY"
for deb in *.deb; do
    dpkg-deb -f "$deb"
    echo "Filename: ./$deb"
    echo "Size: $(stat -c %s "$deb")"
    echo "SHA256: $(sha256sum "$deb" | cut -d' ' -f1)"
    echo
done >Packages
# mmdebstrap looks for the essential packages by the suite's name.
printf 'Suite: trixie\nCodename: trixie\nSHA256:\n %s %s Packages\n' \
    "$(sha256sum Packages | cut -d' ' -f1)" "$(stat -c %s Packages)" >Release

native=$(dpkg --print-architecture)
if [ "$ARCHITECTURE" != "$native" ]; then
    [ "$ARCHITECTURE" = arm64 ] || { echo "no emulator for $ARCHITECTURE" >&2; exit 1; }
    handlers=/proc/sys/fs/binfmt_misc
    [ -e $handlers/register ] || mount -t binfmt_misc binfmt_misc $handlers
    # The flag F opens the emulator now, so that it works inside the new root as well. The magic is
    # the head of a 64-bit little-endian ELF program for machine 183 (AArch64).
    if ! grep -qs '^enabled' $handlers/*aarch64*; then
        magic='\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00'
        mask='\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff'
        printf '%s' ":skerry-aarch64:M::$magic:$mask:/usr/bin/qemu-aarch64:F" >$handlers/register
    fi
fi

exclude() { printf -- '--dpkgopt=path-exclude=%s\n' "$1"; }
# The repository is trusted because every file in it was checked against a SHA-256 that came out of
# the archive's signed index.
mmdebstrap --mode=root --variant=essential --format=tar --architectures="$ARCHITECTURE" \
    --include="$INCLUDE" --skip=output/dev,output/mknod,check/qemu \
    --aptopt='Apt::Install-Recommends "false"' \
    $(exclude '/usr/share/doc/*') $(exclude '/usr/share/man/*') $(exclude '/usr/share/info/*') \
    $(exclude '/usr/share/locale/*') $(exclude '/usr/share/lintian/*') \
    trixie "$OUTPUT" "deb [trusted=yes] copy:$REPOSITORY ./"
