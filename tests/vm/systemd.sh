# luod as a unit of systemd, which is the first process, over a kexec by `systemctl kexec`. A unit runs this, in each kernel;
# another one ends with `ends-slowly`, in the shutdown.
export PATH=/bin HOME=/root
[ "$1" != ends-slowly ] || exec >/share/slow 2>&1 </dev/null
[ "$1" = ends-slowly ] || for port in /sys/class/virtio-ports/*; do
  case $(cat "$port/name") in
    luo.out) exec >"/dev/${port##*/}" 2>&1 </dev/null ;;
    luo.status) status=/dev/${port##*/} ;;
  esac
done
LUO_BOOT=$(sed -n 's/.*luo\.boot=\([0-9]*\).*/\1/p' /proc/cmdline)
: "${LUO_BOOT:=1}"
. /lib.sh

pid() { luoctl --json status | tr -d ' \n' | sed "s/.*\"$1_pid\":\([0-9]*\).*/\1/"; }
spared() { # keeper and worker have the command line that a shutdown spares
  for who in keeper worker; do
    [ "$(head -c1 "/proc/$(pid $who)/cmdline")" = @ ] || { echo "$who:"; tr '\0' ' ' <"/proc/$(pid $who)/cmdline"; return 1; }
  done
}
serves_again() { # BEFORE: another worker than that one
  luoctl status >/dev/null 2>&1 && [ "$(pid worker)" != "$1" ]
}
ends_slowly() { # longer than the update's --timeout
  until [ -e /share/stopped ]; do sleep 0.1; done # the service that has preserved, all of it
  luoctl list
  keeper=$(pid keeper) worker=$(pid worker)
  kill "$keeper" "$worker"
  luoctl stop
  sleep 4
  echo "== after the time allowed"
  luoctl list
  echo "== SIGKILL"
  kill -9 "$worker"
  soon serves_again "$worker"
  luoctl list
  leaving_image "$keeper"
  sync
}
after() { # WORDS: what the slow service has seen
  sed -n "/^== $1/,/^== /p" /share/slow
}
update() { luoctl update kernel --kernel $kernel --initrd $initrd --cmdline "$(line)" "$@"; }
listed() { luoctl list | grep -q "$1"; }
if [ "$1" = ends-slowly ]; then
  ends_slowly
  exit 0
fi
is_first() { [ "$(cat /proc/1/comm)" = systemd ] && [ -d /run/systemd/system ]; }

case $LUO_BOOT in
1)
  mkdir -p /share/at
  cp /boot/bzImage /boot/initrd /share/at/ || exit 92
  does "systemd is the first process" is_first
  does "luod serves, as a unit with the drop-in" soon luoctl status
  does "a service, another unit, has preserved files" soon listed special
  does "a shutdown would spare keeper and worker" spared
  does "luod is updated" luoctl update luod --image /bin/luod
  does "it would spare those of the new image too" spared

  mkdir -p /run/systemd/system/luod.service.d
  printf '[Unit]\nDefaultDependencies=yes\n' >/run/systemd/system/luod.service.d/zz.conf
  systemctl daemon-reload
  does "a unit that the shutdown would stop: refused before anything is disturbed" says "luod-kernel.conf" update
  rm /run/systemd/system/luod.service.d/zz.conf
  systemctl daemon-reload

  echo "# systemctl kexec"
  update --timeout 3 >/tmp/update 2>&1 || { echo "not ok - kexec"; cat /tmp/update; }
  sleep 1000 # until systemd ends this
  ;;
2)
  does "after the kexec systemd is the first process again" is_first
  does "the shutdown had stopped the service, all of its processes" sh -c '[ "$(cat /share/stopped)" = stopped ]'
  does "luod had been asked to end meanwhile, and had not" shows "is being left" cat /share/slow
  does "when the time for the update was over, the shutdown was not: nothing was given up" shows "special *frozen" after "after the time allowed"
  does "nor when the worker was killed" shows "special *frozen" after SIGKILL
  does "luod's state stayed with the kernel" shows "luod$" after SIGKILL
  does "luod has arrived" soon luoctl status
  does "the update stands in its history" shows '"ok":true' sh -c 'luoctl --json status | tr -d " \n"'
  luoctl status | sed -n 's/^ *last update */# /p'
  does "every byte is there of what a stopped service had preserved" luo-vm-service take special 12 5000 --special
  does "and of many files" luo-vm-service take many 300 4096
  before=$(pid keeper)
  does "systemctl stop luod ends it" systemctl stop luod.service
  does "it is gone" sh -c "! kill -0 $before"
  echo 0 >"$status"
  sync
  poweroff -f
  ;;
esac
