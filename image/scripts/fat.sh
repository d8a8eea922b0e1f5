# Inside the tools root: makes a FAT file system of a folder, the same bytes each time.
# Environment: OUTPUT SIZE (bytes) LABEL SERIAL SOURCE FAT (16 or 32) SOURCE_DATE_EPOCH

rm -f "$OUTPUT"
truncate -s "$SIZE" "$OUTPUT"
mkfs.vfat --invariant -F "$FAT" -i "$SERIAL" -n "$LABEL" "$OUTPUT" >/dev/null
find "$SOURCE" -exec touch -h -d "@$SOURCE_DATE_EPOCH" {} +
cd "$SOURCE"
export TZ=UTC0
for item in *; do
    [ -e "$item" ] || continue
    mcopy -s -m -Q -i "$OUTPUT" "$item" ::
done
