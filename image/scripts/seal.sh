# Inside the tools root: packs the tree as erofs with a dm-verity tree behind it.
# Environment: TREE OUTPUT EPOCH UUID SALT COMPRESSION. Prints "BLOCKS HASH" as its last line.

mkfs.erofs -d0 -z"$COMPRESSION" -C32768 -b4096 -x-1 -T"$EPOCH" --all-time -U "$UUID" -L skerry-root \
    "$OUTPUT" "$TREE" >&2
size=$(stat -c %s "$OUTPUT")
[ $((size % 4096)) = 0 ] || truncate -s $(((size + 4095) / 4096 * 4096)) "$OUTPUT"
blocks=$(($(stat -c %s "$OUTPUT") / 4096))
veritysetup format --hash=sha256 --data-block-size=4096 --hash-block-size=4096 --salt="$SALT" \
    --uuid="$UUID" --data-blocks=$blocks --root-hash-file="$OUTPUT.roothash" "$OUTPUT" "$OUTPUT.tree" >&2
cat "$OUTPUT.tree" >>"$OUTPUT"
echo "$blocks $(cat "$OUTPUT.roothash")"
