# The graph of papermill runs. `medsynth reproduce` is the only entry: it writes the plan that arrives here as `config`,
# with the runs that have to be made and no others.
# Run directories are no outputs: Snakemake deletes the outputs of a job that fails, and with them a day's checkpoints.

target = {run["name"]: run["target"] for run in config["runs"]}


rule all:
    input:
        list(target.values()),


for number, run in enumerate(config["runs"]):

    rule:
        name:
            f"chapter_{run['name']}"
        # the arms of a chapter come before it
        input:
            [target[arm] for arm in run["after"] if arm in target],
        output:
            run["target"],
        params:
            name=run["name"],
        # Snakemake tells the libraries of the notebook
        threads: config["threads"] or run["needs"]["threads"]
        # for executors that ask a cluster: mem_mb, runtime in minutes, gpu, slurm_partition
        resources:
            **{name: value for name, value in run["needs"].items() if name != "threads"},
            **config["resources"],
        # in the order of the chapters' numbers, where none waits for another
        priority: 1000 - number
        shell:
            "{config[python]:q} -m medsynth chapter {config[plan]:q} {params.name}"
