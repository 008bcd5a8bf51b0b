"""The DeepMind Control domain: environments, world model, actor-critic, training, evaluation."""
