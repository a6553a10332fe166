# The graph of papermill runs. `medsynth reproduce` is the only entry: it writes the plan that arrives here as `config`.
# A rule's fingerprint changes with the notebook, the library modules it imports, its part of the profile and the data.
# Run directories are no outputs: Snakemake deletes the outputs of a job that fails, and with them a day's checkpoints.


rule all:
    input:
        [chapter["target"] for chapter in config["chapters"]],


for number, chapter in enumerate(config["chapters"]):

    rule:
        name:
            f"chapter_{chapter['name']}"
        output:
            chapter["target"],
        params:
            name=chapter["name"],
            fingerprint=chapter["fingerprint"],
        # Snakemake tells the chapter's libraries
        threads: config["threads"] or chapter["needs"]["threads"]
        # for executors that ask a cluster: mem_mb, runtime in minutes, gpu, slurm_partition
        resources:
            **{name: value for name, value in chapter["needs"].items() if name != "threads"},
            **config["resources"],
        # chapters run in the order of their numbers, although none waits for another
        priority: 1000 - number
        shell:
            "{config[python]:q} -m medsynth chapter {config[plan]:q} {params.name}"
