# What luoctl update kernel says in front of a real kernel, line by line. Nothing is started here.
. /lib.sh
good="quiet kho=on liveupdate=on"

loaded() { # 0 or 1
  [ "$(cat /sys/kernel/kexec_loaded)" = "$1" ] || { echo "kexec_loaded is not $1"; return 1; }
}
update() { luoctl update kernel --kernel /boot/bzImage --initrd /boot/initrd --cmdline "$good" "$@"; }
with_line() { luoctl update kernel --kernel /boot/bzImage --initrd /boot/initrd --cmdline "$@"; }
instead() { luoctl update kernel --cmdline "$good" --kernel "$@"; }
says() { # PATTERN COMMAND...: fails with status 1 and these words, and nothing is loaded after it
  pattern=$1
  shift
  "$@" >/tmp/answer 2>&1
  status=$?
  [ $status = 1 ] && grep -q -- "$pattern" /tmp/answer && loaded 0 || { echo "status $status, no '$pattern'?"; cat /tmp/answer; return 1; }
}
shows() { # PATTERN COMMAND...: succeeds with these words, and nothing is loaded after it
  pattern=$1
  shift
  "$@" >/tmp/answer 2>&1
  status=$?
  [ $status = 0 ] && grep -q -- "$pattern" /tmp/answer && loaded 0 || { echo "status $status, no '$pattern'?"; cat /tmp/answer; return 1; }
}
start_luod() { # MEDIUM
  luod --medium "$1" >/tmp/luod.log 2>&1 </dev/null &
  for i in $(seq 100); do luoctl status >/dev/null 2>&1 && return 0; sleep 0.1; done
  echo "luod does not serve"; cat /tmp/luod.log; return 1
}

start_luod exec || exit 93
does "a luod of the medium exec: how to start the other one" says "luod with --medium kernel" update
luoctl stop >/dev/null
start_luod kernel || exit 94
does "a dry run loads, asks, and unloads" shows "dry run: 0 sessions with 0 files can cross into Linux 7" update --dry-run
does "it tells how long each part took" shows "prepare .* ms, preserve .* ms, image .* ms, freeze .* ms" update --dry-run
does "the running kernel's command line is the default" shows "that of the running kernel" luoctl update kernel --kernel /boot/bzImage --initrd /boot/initrd --dry-run
does "the formats of state are compared" shows "as the running kernel writes them" update --dry-run
does "without an initrd where there was one: a warning" shows "warning  initrd" instead /boot/bzImage --dry-run

head -c 2000000 /boot/bzImage >/tmp/short
does "a truncated image" says "of which only 2000000 bytes" instead /tmp/short
cp /boot/bzImage /tmp/bad
printf XXXXXXXXXXXXXXXX | dd of=/tmp/bad bs=1 seek=2000000 conv=notrunc 2>/dev/null
does "a damaged image" says "gzip and damaged" instead /tmp/bad
does "both of which the kernel would have loaded" sh -c 'kexec -s -l /tmp/short && kexec -s -l /tmp/bad && kexec -s -u'
does "a kernel that would not know the state that this one writes" says "the running kernel writes luo-v5, and nothing" instead /boot/other
does "a file that is no kernel" says "none that is known" instead /init
does "an ELF file" says "an ELF file" instead /bin/luoctl
does "a folder" says "no regular file" instead /boot
does "no file" says "No such file" instead /boot/no-such
does "a command line that does not turn LUO on" says "add to --cmdline: liveupdate=on" with_line "kho=on"
does "one that turns KHO off" says "does not turn on KHO" with_line "liveupdate=on kho=off"
does "one that is too long" says "this kernel takes 2047" with_line "$good $(printf '%2100s' x)"

truncate -s 2G /tmp/huge
does "an initrd for which memory is missing" says "error    memory" instead /boot/bzImage --initrd /tmp/huge
truncate -s 100M /tmp/huge
does "an initrd for which the scratch areas are too small" says "kho_scratch=" instead /boot/bzImage --initrd /tmp/huge
rm /tmp/huge
cp /boot/bzImage /tmp/open
exec 9>>/tmp/open
does "an image that somebody writes to" says "open for writing" instead /tmp/open
exec 9>&-

kexec -s -l /boot/bzImage --command-line=quiet || exit 95
does "a kernel that is loaded already: a warning, and it is replaced" shows "loaded for kexec already" update --dry-run
kexec -s -l /boot/bzImage --command-line=quiet || exit 95
luoctl update kernel --kernel /boot/bzImage --cmdline quiet >/dev/null 2>&1
does "and stays if nothing is to be loaded in its place" loaded 1
kexec -s -u

printf '\n%s\n' "== json" >/tmp/json
luoctl --json update kernel --kernel /boot/bzImage --initrd /boot/initrd --cmdline "$good" --dry-run >>/tmp/json
does "luod is as before" sh -c 'luoctl status | grep -q "0 outgoing, 0 incoming"'
echo 1 >/proc/sys/kernel/kexec_load_disabled
does "a kernel that loads no others any more" says "kexec_load_disabled is 1" update
luoctl stop >/dev/null
cat /tmp/json
