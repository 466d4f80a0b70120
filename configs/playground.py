"""The quickstart's recipe with more pictures and time: an hour or so on two cores, minutes on a GPU."""

from ml_collections import ConfigDict

from configs import quickstart


def get_config() -> ConfigDict:
    c = quickstart.get_config()
    c.title = "SPHINX playground"
    c.about = (
        "The SPHINX recipe at nano size on more pictures: pre-train on real, continue on synthetic, mix the weights,",
        "fine-tune on mixed tasks, evaluate, report. About an hour on two cores.",
    )
    c.data.playground = "full"
    for name, steps in (("pretrain_real", 3000), ("continue_synthetic", 1000), ("finetune", 15000)):
        c.stage[name].steps = steps
        c.stage[name].save_every = 1000
    # as its report was made: the quickstart's own settings suit a fifteenth of the steps
    del c.stage.mix.length, c.stage.mix.pictures
    c.stage.finetune.rate = 1e-2
    c.stage.finetune.optimizer_settings.adam_learning_rate = 0.3
    c.stage.finetune.repeats = {}
    c.stage.finetune.tasks.vqa = 2.0  # its many kinds, reading above all, are learnt last
    c.stage.evaluate.limit = None
    return c
