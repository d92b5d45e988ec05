# From the lines of hack/bench, slurped, to one object a case and contender, with the medians of its rounds.

def median: sort | (.[(length - 1) / 2 | floor] + .[length / 2 | floor]) / 2;

# The values in the order in which they first appear.
def distinct: reduce .[] as $value ([]; if index([$value]) then . else . + [$value] end);

# What of the image is new in a case.
def gib($machine):
    if endswith("/full") then $machine.contentBytes / pow(2; 30)
    elif endswith("/64M") then 1 / 16
    else 1 / 1024 end;

# From the rounds of one contender in one case.
def summary($machine):
    .[0].case as $case | {
        case: $case,
        contender: .[0].contender,
        seconds: (map(.seconds) | median),
        fastest: (map(.seconds) | min),
        slowest: (map(.seconds) | max),
        cpuSeconds: (map(.cpuSeconds) | median),
        cpuSecondsPerGiB: ((map(.cpuSeconds) | median) / ($case | gib($machine))),
        wireBytes: (map(.wireBytes // empty) | if . == [] then null else median end),
        unsyncedSeconds: (map(.unsyncedSeconds) | max),
        peakRssAnon: (map(.answer.peakRssAnon // empty) | max)
    };

def medians:
    .[0] as $machine
    | .[1:] | map(. + {case: "\(.pool)/\(.change)"}) | . as $lines
    | map([.case, .contender]) | distinct
    | map(. as [$case, $contender]
        | $lines | map(select(.case == $case and .contender == $contender)) | summary($machine));
