# luod with the kernel medium, from one kernel into another, and back into the first.
. /lib.sh
luod --medium kernel >/tmp/luod.log 2>&1 </dev/null &
soon luoctl status >/dev/null
cross() { # KERNEL: does not come back
  luoctl update kernel --kernel $1 --initrd /share/at/initrd --cmdline "$(line)"
  echo "not ok - kexec from boot $LUO_BOOT"
  cat /tmp/luod.log
  exit 90
}
is_another() { [ "$(uname -r)" != "$(cat /share/release)" ]; }
is_the_first() { [ "$(uname -r)" = "$(cat /share/release)" ]; }
take() { luo-vm-service take one 300 4096 --renew && luo-vm-service take two 3 8388608 --renew; }
echo "boot $LUO_BOOT: Linux $(uname -r)"
case $LUO_BOOT in
1)
  mkdir /share/at
  cp /boot/bzImage /boot/initrd /boot/other /share/at
  uname -r >/share/release
  does "files are kept" sh -c "luo-vm-service keep one 300 4096 && luo-vm-service keep two 3 8388608"
  cross /share/at/other ;;
2)
  does "it is another kernel" is_another
  does "every file came, and is kept anew" take
  cross /share/at/bzImage ;;
3)
  does "it is the first kernel" is_the_first
  does "every file came back" take ;;
esac
