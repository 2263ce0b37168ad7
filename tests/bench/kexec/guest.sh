# In the virtual machine. Arguments: timeline SESSIONS FILES BIG WAY..., or deep FILES WAY..., or curve WAY SESSIONS FILES.
# A timeline's boot number N takes what boot N-1 left, and leaves what boot N+1 takes.
exec 2>/share/errors
set -e
what=$1
shift
line="$(sed 's/ *luo.boot=[0-9]*//g' /proc/cmdline) luo.boot=$((LUO_BOOT + 1))"
[ "$LUO_BOOT" != 1 ] || cp /boot/bzImage /boot/initrd /share/
export LUO_SOCKET=/run/luod.sock
start_luod() { luod --medium "$1" --socket $LUO_SOCKET --state-dir /run/luod 2>/run/luod.log & }
load() { kexec -s -l /share/bzImage --initrd=/share/initrd --command-line="$line"; }
case $what in
timeline)
  sessions=$1 files=$2 big=$3
  shift 3
  mine=$(echo "$@" | cut -d' ' -f$LUO_BOOT)
  if [ "$LUO_BOOT" != 1 ]; then
    theirs=$(echo "$@" | cut -d' ' -f$((LUO_BOOT - 1)))
    [ "$theirs" = bare ] || start_luod kernel
    luo-timeline "$theirs" take "$sessions" "$files" "$big"
    if [ "$theirs" != bare ]; then
      echo "{\"way\": \"luod\", \"step\": \"luod\", \"status\": $(luoctl --json status | tr -d '\n')}"
      luoctl stop >&2
      wait
    fi
  fi
  [ "$LUO_BOOT" -le $# ] || exit 0
  if [ "$mine" = bare ]; then
    load
    luo-timeline bare fill "$sessions" "$files" "$big"
  else
    start_luod kernel
    luo-timeline luod fill "$sessions" "$files" "$big"
    luoctl update kernel --kernel /share/bzImage --initrd /share/initrd --cmdline "$line" >&2
  fi
  exit 91 ;;
deep)
  files=$1
  shift
  for way; do
    [ "$way" = bare ] || start_luod kernel
    luo-timeline "$way" deep "$files"
    [ "$way" = bare ] || { luoctl stop >&2; wait; }
  done ;;
curve)
  way=$1
  if [ "$way" = bare ]; then
    case $LUO_BOOT in
    1) luo-timeline bare curve-fill "$2" "$3"
       load
       sync
       kexec -e ;;
    *) luo-timeline bare curve-take "$3" ;;
    esac
  else
    start_luod exec
    luo-timeline luod curve-fill "$2" "$3"
    luoctl update simulated >&2
    luo-timeline luod curve-take "$3"
    luoctl stop >&2
  fi ;;
esac
