#!/usr/bin/env bash
# A real SLURM cluster on this one machine, without systemd, for the tests.
#
#   lab.sh start [NODES=2] [dbd]   install what is missing, start; dbd adds accounting (slurmdbd on a private MariaDB)
#   lab.sh stop                    end its jobs and all its daemons, also after a start that failed half-way
#   lab.sh status                  nodes and jobs
#   lab.sh env                     what a client needs:  eval "$(lab.sh env)"
#
# Everything lives in the folder $LAB; several labs in several folders do not meet. Partitions: debug (default), short (one
# node, 30 minutes), low (a job of high takes its place, and it is requeued) and high. Each node has 2 CPUs, its share of the
# machine's memory, and 2 fake GPUs where device files may be made. Exit status 3: this machine cannot have a lab, and one
# line says why; 1: the lab did not come up.
set -euo pipefail
LAB=$(realpath -m "${LAB:-${TMPDIR:-/tmp}/slurm-lab.$UID}")
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
export SLURM_CONF=$LAB/slurm.conf
SQL=$LAB/mysql/socket

cannot() { echo "no SLURM here: $*" >&2; exit 3; }

# Tries "${@:2}" again and again for about $1 seconds.
within() {
  local end=$((SECONDS + $1)); shift
  until "$@" >/dev/null 2>&1; do [ $SECONDS -lt $end ] || return 1; sleep 0.1; done
}

# All that belongs to the lab: daemons and job steps (they hold a log of it open), and what runs in its jobs (it carries the
# lab's SLURM_CONF and a node's name). Not by pid files: a daemon that died young never wrote one, and job steps have none.
steps_and_daemons() { find /proc/[0-9]*/fd -lname "$LAB/log/*" 2>/dev/null | cut -d/ -f3 | sort -u; }
in_jobs() {
  { grep -lsxzF "SLURM_CONF=$SLURM_CONF" /proc/[0-9]*/environ || true; } | xargs -r grep -lsz "^SLURMD_NODENAME=" | cut -d/ -f3
}
ours() { steps_and_daemons || true; in_jobs || true; }

install_packages() {
  local programs=(slurmctld slurmd munged) packages=(slurm-wlm munge)
  if [ "$1" = dbd ]; then programs+=(slurmdbd mariadbd); packages+=(slurmdbd mariadb-server); fi
  command -v "${programs[@]}" >/dev/null && [ "$(command -v "${programs[@]}" | wc -l)" = ${#programs[@]} ] && return
  command -v apt-get >/dev/null || cannot "${packages[*]} are not installed, and there is no apt-get to install them"
  local install=(env DEBIAN_FRONTEND=noninteractive apt-get install -y -o DPkg::Lock::Timeout=120 --no-install-recommends "${packages[@]}")
  "${install[@]}" >"$LAB/log/apt.log" 2>&1 || { apt-get update && "${install[@]}"; } >>"$LAB/log/apt.log" 2>&1 \
    || cannot "apt-get could not install ${packages[*]} ($(grep -m1 '^E:' "$LAB/log/apt.log" || tail -n1 "$LAB/log/apt.log"))"
}

# Prints the first of $1 consecutive free ports below the range that the system hands out itself.
free_ports() {
  local first port
  while :; do
    first=$((20000 + RANDOM % 12000))
    for ((port = first; port < first + $1; port++)); do (: <"/dev/tcp/127.0.0.1/$port") 2>/dev/null && continue 2; done
    echo "$first"; return
  done
}

fake_gpus() {
  local gpu
  for gpu in 0 1; do [ -c "$LAB/gpu$gpu" ] || mknod "$LAB/gpu$gpu" c 1 3 2>/dev/null || return 1; done
  echo "NodeName=n[1-$1] Name=gpu File=$LAB/gpu[0-1]" >"$LAB/gres.conf"
}

write_conf() {
  local nodes=$1 dbd=$2 host port memory gres="" n
  host=$(hostname -s)
  port=$(free_ports $((nodes + 2)))
  memory=$(awk -v nodes="$nodes" '/MemTotal/ {print int($2 / 1024 / nodes)}' /proc/meminfo)
  sed -e "s|@HOST@|$host|; s|@PORT@|$port|; s|@LAB@|$LAB|; s|@FIRST@|$((10000 + RANDOM))|" "$HERE/slurm.conf" >"$LAB/slurm.conf"
  {
    if [ "$dbd" = dbd ]; then
      printf 'AccountingStorage%s\n' Type=accounting_storage/slurmdbd Host=127.0.0.1 "Port=$((port + nodes + 1))" "Pass=$LAB/run/munge.socket"
    else
      echo AccountingStorageType=accounting_storage/none
    fi
    if fake_gpus "$nodes"; then echo GresTypes=gpu; gres=" Gres=gpu:2"; fi
    for ((n = 1; n <= nodes; n++)); do
      mkdir -p "$LAB/spool.n$n"
      echo "NodeName=n$n NodeHostname=$host NodeAddr=127.0.0.1 Port=$((port + n)) CPUs=2 RealMemory=$memory$gres"
    done
    echo "PartitionName=debug Nodes=ALL Default=YES MaxTime=INFINITE PriorityTier=1 PreemptMode=OFF"
    echo "PartitionName=short Nodes=n1 MaxTime=30 PriorityTier=1 PreemptMode=OFF"
    echo "PartitionName=low Nodes=ALL MaxTime=INFINITE PriorityTier=1 PreemptMode=REQUEUE GraceTime=0"
    echo "PartitionName=high Nodes=ALL MaxTime=INFINITE PriorityTier=10 PreemptMode=OFF"
  } >>"$LAB/slurm.conf"
}

start_munge() {
  [ -f "$LAB/munge.key" ] || (umask 077 && head -c 128 /dev/urandom >"$LAB/munge.key")
  munged --key-file="$LAB/munge.key" --socket="$LAB/run/munge.socket" --pid-file="$LAB/run/munged.pid" \
    --seed-file="$LAB/run/munged.seed" --log-file="$LAB/log/munged.log"
}

start_dbd() {
  local port; port=$(sed -n 's/^AccountingStoragePort=//p' "$LAB/slurm.conf")
  if [ ! -d "$LAB/mysql/mysql" ]; then
    install -d -o mysql -m 700 "$LAB/mysql"
    mariadb-install-db --no-defaults --user=mysql --datadir="$LAB/mysql" --skip-test-db >"$LAB/log/mysql_install.log" 2>&1
  fi
  mariadbd --no-defaults --user=mysql --datadir="$LAB/mysql" --socket="$SQL" --pid-file="$LAB/mysql/pid" \
    --skip-networking --innodb-buffer-pool-size=64M >"$LAB/log/mariadbd.log" 2>&1 &
  within 20 mariadb -S "$SQL" -e "create database if not exists slurm_acct_db"
  printf '%s\n' AuthType=auth/munge "AuthInfo=socket=$LAB/run/munge.socket" "DbdHost=$(hostname -s)" DbdAddr=127.0.0.1 "DbdPort=$port" \
    SlurmUser=root "LogFile=$LAB/log/slurmdbd.log" "PidFile=$LAB/run/slurmdbd.pid" \
    StorageType=accounting_storage/mysql StorageUser=root StorageLoc=slurm_acct_db >"$LAB/slurmdbd.conf"
  chmod 600 "$LAB/slurmdbd.conf"
  # slurmdbd has no setting for a database's socket, only the client library's own variable
  MYSQL_UNIX_PORT=$SQL slurmdbd
  within 10 sacctmgr -n -i list cluster
  [ -n "$(sacctmgr -n list cluster lab)" ] || sacctmgr -i add cluster lab >/dev/null
}

nodes_idle() { [ "$(sinfo -h -N -p debug -t idle -o %N | wc -l)" = "$1" ]; }

come_up() {
  local nodes=$1 dbd=$2 n
  start_munge
  if [ "$dbd" = dbd ]; then start_dbd; fi
  slurmctld -c
  for ((n = 1; n <= nodes; n++)); do slurmd -c -N "n$n"; done
  within 20 nodes_idle "$nodes"
}

start() {
  local nodes=2 dbd="" word
  for word in "$@"; do
    case $word in dbd) dbd=dbd ;; [1-9]) nodes=$word ;; *) usage ;; esac
  done
  [ "$(id -u)" = 0 ] || cannot "the daemons must be started by root, not by user $(id -u)"
  [ -z "$(ours)" ] || { echo "a lab already runs in $LAB: stop it first, or set LAB to another folder" >&2; exit 1; }
  mkdir -p "$LAB"/{state,log,run}
  chmod 755 "$LAB" "$LAB/run"
  rm -f "$LAB"/log/*.log
  install_packages "$dbd"
  write_conf "$nodes" "$dbd"
  # not as a condition: bash would go on after a failed step inside it
  trap 'echo "the lab did not come up; its logs say:" >&2; tail -n 5 "$LAB"/log/*.log >&2; stop' EXIT
  come_up "$nodes" "$dbd"
  trap - EXIT
}

none_left() { [ -z "$(ours)" ]; }
no_jobs() { [ -z "$(in_jobs)" ]; }
settled() { [ -z "$(timeout 5 squeue -h -a -t RUNNING,COMPLETING,SUSPENDED 2>/dev/null)" ]; }

stop() {
  none_left && return
  # jobs outlive slurmd, so they go first, and while the controller can still end them in order
  timeout 10 scancel -u root -t PENDING 2>/dev/null || true
  timeout 10 scancel -u root -f -s KILL 2>/dev/null || true
  # what left its job's process tree is out of SLURM's sight
  # shellcheck disable=SC2046
  within 3 no_jobs || kill -KILL $(in_jobs) 2>/dev/null || true
  within 5 settled || true # a node that still has to tell its controller something waits ten seconds for it
  # shellcheck disable=SC2046
  kill $(ours) 2>/dev/null || true
  within 10 none_left && return
  # shellcheck disable=SC2046
  kill -KILL $(ours) 2>/dev/null || true
  within 2 none_left || { echo "still running: $(ours | xargs)" >&2; return 1; }
}

usage() { echo "usage: $0 start [NODES=2, up to 9] [dbd] | stop | status | env" >&2; exit 2; }

case "${1:-}" in
  start) start "${@:2}" ;;
  stop) stop ;;
  status) sinfo -N -l; squeue -a ;;
  env) echo "export LAB=$LAB SLURM_CONF=$SLURM_CONF" ;;
  *) usage ;;
esac
