# Removes what the test process $1 has made, once its end of our input is closed: however it ended.
set -u
cat >/dev/null
for path in /run/netns/mgo-t"$1"-*; do
    [ -e "$path" ] || continue
    name=${path##*/}
    ip netns pids "$name" | while read -r pid; do kill -KILL "$pid" 2>/dev/null; done
    ip netns delete "$name"
done
rm -rf /sys/fs/bpf/marengo-t"$1" /run/marengo-t"$1"
