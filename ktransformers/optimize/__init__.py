"""From a model and a rule file to injected operators: rules, plan (pure), apply."""
