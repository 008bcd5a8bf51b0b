"""PaMoRL on DeepMind Control: the parts that are special to dm_control's suite."""
