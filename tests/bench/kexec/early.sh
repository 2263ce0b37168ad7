# Run by /init as soon as there is a place for it, as a host's init starts what others need. Arguments: none.
case " $(cat /proc/cmdline) " in
*" luo.way=luod "*)
  echo $$ >/run/luod.pid
  exec luod --medium kernel --socket /run/luod.sock --state-dir /run/luod 2>/run/luod.log ;;
esac
